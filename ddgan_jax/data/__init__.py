"""Data: `readers` (files in, images out), `preparation` (once: check, decode, keep), `sources` (random access),
`pipeline` (source -> global batches).

Nothing is imported here, so that a module that needs only one of them does not pay for TFDS.
"""
