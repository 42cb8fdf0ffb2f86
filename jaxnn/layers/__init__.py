"""The layers, one file each: definition, derivation, rule."""

from jaxnn.layers.conv2d import conv2d as conv2d
from jaxnn.layers.dropout import dropout as dropout
from jaxnn.layers.linear import linear as linear
from jaxnn.layers.log_softmax import log_softmax as log_softmax
from jaxnn.layers.max_pool2d import max_pool2d as max_pool2d
from jaxnn.layers.max_pool2d import max_pool2d_with_indices as max_pool2d_with_indices
from jaxnn.layers.relu import relu as relu
from jaxnn.layers.sigmoid import sigmoid as sigmoid
from jaxnn.layers.softmax import softmax as softmax
from jaxnn.layers.tanh import tanh as tanh
