"""CamemBERT (Martin et al. 2020): RoBERTa's architecture."""

import encoderlens.families.roberta as roberta

CAMEMBERT = roberta.family("CamemBERT", "camembert", "Camembert")
