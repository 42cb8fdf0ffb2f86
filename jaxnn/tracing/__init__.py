"""Everything that depends on how JAX traces functions. It knows no component and no check."""

from jaxnn.tracing.automatic import automatic as automatic
