"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa's architecture."""

import encoderlens.families.roberta as roberta

XLM_ROBERTA = roberta.family("XLM-RoBERTa", "xlm-roberta", "XLMRoberta")
