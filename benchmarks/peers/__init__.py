"""Other people's agents under the same clock: each file runs a checkout given by path, in that peer's interpreter."""
