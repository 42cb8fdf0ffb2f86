"""The losses, one file each: definition, derivation, rule."""

from jaxnn.losses.binary_cross_entropy import binary_cross_entropy as binary_cross_entropy
from jaxnn.losses.cross_entropy import cross_entropy as cross_entropy
from jaxnn.losses.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from jaxnn.losses.nll import nll as nll
from jaxnn.losses.nll_loss import nll_loss as nll_loss
from jaxnn.losses.penalties import l1_penalty as l1_penalty
from jaxnn.losses.penalties import l2_penalty as l2_penalty
from jaxnn.losses.squared_error import squared_error as squared_error
