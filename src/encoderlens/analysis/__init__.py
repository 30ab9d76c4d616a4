"""Analyses: functions of a model and its inputs that return a frozen result."""

from encoderlens.analysis.result import AdditiveResult as AdditiveResult
from encoderlens.analysis.result import Entry as Entry
from encoderlens.analysis.result import Interval as Interval
from encoderlens.analysis.result import Result as Result
