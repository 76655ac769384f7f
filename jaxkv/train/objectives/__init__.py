"""What training minimises: one idea a file.

    loss = sum over objectives of weight(step) * value

A value is a mean over the tokens of a step, by the weight of the token that a place
predicts; or, of an add-on's budget, one number.
"""

from jaxkv.train.objectives.attention_outputs import (
    AttentionOutputs as AttentionOutputs,
)
from jaxkv.train.objectives.base import Objective as Objective
from jaxkv.train.objectives.cross_entropy import CrossEntropy as CrossEntropy
from jaxkv.train.objectives.divergence import Divergence as Divergence
from jaxkv.train.objectives.hidden_states import HiddenStates as HiddenStates
from jaxkv.train.objectives.kept import KeptAbove as KeptAbove
from jaxkv.train.objectives.kept import MeanKept as MeanKept
from jaxkv.train.objectives.reconstruction import Reconstruction as Reconstruction
