"""Data: `readers` (files to images), `preparation` (check and decode once), `sources` (random access), `pipeline`
(source to global batches).

Nothing is imported here, because TFDS is slow to import and few modules need it.
"""
