"""Pictures of a training run (`training`, with matplotlib) and the page of a comparison (`comparison`, plain HTML)."""
