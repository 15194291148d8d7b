"""The steps of a pipeline: read from its recipe, checked, and fingerprinted with everything they depend on."""
