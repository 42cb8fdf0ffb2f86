"""All that depends on how JAX traces functions. Knows no component and no check."""

from jaxnn.tracing.automatic import automatic as automatic
