"""Data: `sources` (TFDS name -> random access), `pipeline` (source -> global batches), `digits` (needs no download).

Nothing is imported here, so that a module that needs only one of the three does not pay for TFDS.
"""
