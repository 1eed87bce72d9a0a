"""Nothing on disk is half-written, and a name becomes a folder."""
