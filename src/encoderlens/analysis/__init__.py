"""Analyses: functions of a model and its inputs that return a frozen result."""

from encoderlens.analysis.contacts import Contacts as Contacts
from encoderlens.analysis.contacts import contacts as contacts
from encoderlens.analysis.cosine_attribution import CosineAttribution as CosineAttribution
from encoderlens.analysis.cosine_attribution import TokenPairs as TokenPairs
from encoderlens.analysis.cosine_attribution import cosine_attribution as cosine_attribution
from encoderlens.analysis.cosine_attribution import token_pairs as token_pairs
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
