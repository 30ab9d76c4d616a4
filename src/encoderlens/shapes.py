"""The axis glossary, and the tensor types that signatures share.

====================  ==========================================================================================
axis                  meaning
====================  ==========================================================================================
batch                 sequences of one run
pos                   token positions, padding included
query, key            the two position axes of attention
head                  attention heads
kv_head               heads of keys and values, which several heads may share
d_model               width of the residual stream
d_head                width of one head
d_mlp                 width of the MLP's hidden layer (its neurons)
d_vocab               word pieces
token_type            segments (sentence A, sentence B)
label                 classes of a classifier
d_sentence            width of a sentence encoder's vector, at any step behind the pooling
layer                 blocks of the encoder
====================  ==========================================================================================

``...`` stands for ``batch pos``, or for one axis of all real tokens where a batch runs packed.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]
Resid = Float[Tensor, "batch pos d_model"]
Stream = Float[Tensor, "*rows d_model"]
HeadVectors = Float[Tensor, "*rows head d_head"]
KVHeadVectors = Float[Tensor, "*rows kv_head d_head"]
Neurons = Float[Tensor, "*rows d_mlp"]
Scores = Float[Tensor, "batch head query key"]
