"""Files from the hub: a small hub on this machine, one that cannot be reached, and one that never answers."""

import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest

from encoderlens import HookedAudioEncoder, HookedEncoder, hub
from encoderlens.errors import CheckpointNotFoundError, ConfigError
from encoderlens.loading import tokenizer_named
from tests.checkpoints import save_tiny
from tests.tiny import TOKENIZER

COMMIT = "1" * 40
REPO = "some-lab/tiny-bert"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes an address that of the hub, which the client then asks."""

    def use(endpoint: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


@pytest.fixture
def served(tmp_path: Path, online: Callable[[str], None]) -> Iterator[list[tuple[str, str | None]]]:
    """A hub with one repository; the paths that it was asked for, each with the token."""
    files, asked = tmp_path / "remote", list[tuple[str, str | None]]()
    save_tiny("BertForMaskedLM", files)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (files / name).write_bytes((Path(TOKENIZER) / name).read_bytes())

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            path = files / self.path.rpartition("/")[2]
            known = self.path.startswith(f"/{REPO}/resolve/main/") and path.is_file()
            self.send_response(200 if known or self.path == "/" else 404)
            if not known:
                self.send_header("X-Error-Code", "EntryNotFound" if REPO in self.path else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{path.name}"')
            self.send_header("Content-Length", str(path.stat().st_size if known else 0))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write((files / self.path.rpartition("/")[2]).read_bytes())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever)
    thread.start()
    online(f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_client_s_options_reach_it_for_weights_and_tokenizer(served: list[tuple[str, str | None]], tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "device": "cpu"}
    model = HookedEncoder.from_pretrained(REPO, token="hf_secret", **options)
    downloads = {path.rpartition("/")[2]: token for path, token in served if path != "/"}
    assert {downloads[name] for name in ("config.json", "model.safetensors", "tokenizer.json")} == {"Bearer hf_secret"}
    n_asked = len(served)
    again = HookedEncoder.from_pretrained(REPO, local_files_only=True, **options)
    assert again("the doctor").equal(model("the doctor"))
    assert len(served) == n_asked
    with pytest.raises(CheckpointNotFoundError, match=r"hub was not asked \(local_files_only=True\): check the name"):
        HookedEncoder.from_pretrained(REPO, local_files_only=True, cache_dir=tmp_path / "empty")


def test_a_name_that_the_hub_does_not_know(served: list[tuple[str, str | None]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"'some-lab/tiny-brt' is neither a folder nor a hub id"):
        HookedEncoder.from_pretrained("some-lab/tiny-brt", cache_dir=tmp_path / "cache")


UNREACHABLE = r"was not found in the hub cache; the hub could not be reached \({}.*\): check the name, connect"


def test_a_misspelt_name_without_a_network_answers_at_once(online: Callable[[str], None], tmp_path: Path) -> None:
    online("http://127.0.0.1:1")
    started = time.monotonic()
    for load in (HookedEncoder.from_pretrained, HookedAudioEncoder.from_pretrained):
        with pytest.raises(CheckpointNotFoundError, match=f"'bert-bse' .*{UNREACHABLE.format('ConnectError')}"):
            load("bert-bse", cache_dir=tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=UNREACHABLE.format("ConnectError")):
        tokenizer_named("some-lab/just-a-tokenizr")
    assert time.monotonic() - started < 5


def test_a_hub_that_never_answers_is_not_waited_for(
    online: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(CheckpointNotFoundError, match=UNREACHABLE.format("(no answer within|ReadTimeout)")):
            HookedEncoder.from_pretrained("bert-bse", cache_dir=tmp_path)


@pytest.mark.parametrize("load", [HookedEncoder.from_pretrained, HookedAudioEncoder.from_pretrained])
def test_switches_of_transformer_lens_are_taken_as_off_only(load: Callable[..., Any], unchecked: None) -> None:
    off = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    off |= {"refactor_factored_attn_matrices": None, "n_devices": 1, "first_n_layers": None}
    with pytest.raises(CheckpointNotFoundError, match=r"there is no folder '\./nowhere'"):
        load("./nowhere", **off)
    with pytest.raises(ConfigError, match=r"fold_ln=True is not for encoders: weights stay those of the checkpoint"):
        load("./nowhere", fold_ln=True)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'center_unembd'; did you mean 'center_unembed'\?"):
        load("./nowhere", center_unembd=False)
    with pytest.raises(ConfigError, match="local_files_only is 'yes'; it must be True or False"):
        load("./nowhere", local_files_only="yes")
