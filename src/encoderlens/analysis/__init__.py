"""Analyses: functions of a model and its inputs that return a frozen result."""

from encoderlens.analysis.direct_logit_attribution import DirectLogitAttribution as DirectLogitAttribution
from encoderlens.analysis.direct_logit_attribution import direct_logit_attribution as direct_logit_attribution
from encoderlens.analysis.fill_mask import FillMask as FillMask
from encoderlens.analysis.fill_mask import fill_mask as fill_mask
from encoderlens.analysis.logit_lens import LogitLens as LogitLens
from encoderlens.analysis.logit_lens import logit_lens as logit_lens
from encoderlens.analysis.minimal_pairs import MinimalPairs as MinimalPairs
from encoderlens.analysis.minimal_pairs import minimal_pairs as minimal_pairs
from encoderlens.analysis.pseudo_log_likelihood import PseudoLogLikelihood as PseudoLogLikelihood
from encoderlens.analysis.pseudo_log_likelihood import pseudo_log_likelihood as pseudo_log_likelihood
from encoderlens.analysis.result import AdditiveResult as AdditiveResult
from encoderlens.analysis.result import Entry as Entry
from encoderlens.analysis.result import Interval as Interval
from encoderlens.analysis.result import Result as Result
from encoderlens.analysis.sentence_files import read_minimal_pairs as read_minimal_pairs
from encoderlens.analysis.sentence_files import read_sentences as read_sentences
