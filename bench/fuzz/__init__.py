"""Fuzzing of everything that reads a file: `python -m bench.fuzz`, or `make fuzz`.

A reader either loads a file or raises `InputError`: no other exception, no hang, no memory beyond a
bound. Cases are made from small seeds by code, and each follows from (reader, seed, number), so a
finding is replayed by its number: `python -m bench.fuzz tiff --first 1234 --cases 1`.

`corpus` makes the seeds, `mutate` changes them, `readers` says how each is read, `guard` holds the
limits, `guided` lets atheris choose the changes by coverage, `__main__` runs and records.
"""
