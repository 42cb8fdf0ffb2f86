"""Training: the SGD step, the epoch on the device, the loop over the epochs, and checkpoints."""

from jaxnn.training.checkpoint import CheckpointError as CheckpointError
from jaxnn.training.checkpoint import Checkpoints as Checkpoints
from jaxnn.training.checkpoint import Saved as Saved
from jaxnn.training.checkpoint import load_params as load_params
from jaxnn.training.checkpoint import newest_step as newest_step
from jaxnn.training.checkpoint import read_step as read_step
from jaxnn.training.checkpoint import save_params as save_params
from jaxnn.training.epoch import Batches as Batches
from jaxnn.training.epoch import evaluate as evaluate
from jaxnn.training.epoch import make_batches as make_batches
from jaxnn.training.epoch import on_all_devices as on_all_devices
from jaxnn.training.epoch import run_steps as run_steps
from jaxnn.training.fit import Diverged as Diverged
from jaxnn.training.fit import EpochResult as EpochResult
from jaxnn.training.fit import Position as Position
from jaxnn.training.fit import Progress as Progress
from jaxnn.training.fit import fit as fit
from jaxnn.training.optimizers import OPTIMIZERS as OPTIMIZERS
from jaxnn.training.optimizers import SCHEDULES as SCHEDULES
from jaxnn.training.optimizers import make_optimizer as make_optimizer
from jaxnn.training.step import Step as Step
from jaxnn.training.step import TrainState as TrainState
from jaxnn.training.step import init_state as init_state
from jaxnn.training.step import make_step as make_step
