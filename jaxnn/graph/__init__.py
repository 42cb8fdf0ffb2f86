"""The computation graph of any JAX function, as the notes draw it for back-propagation."""

from jaxnn.graph.graph import Edge as Edge
from jaxnn.graph.graph import Graph as Graph
from jaxnn.graph.graph import Node as Node
from jaxnn.graph.trace import trace as trace
