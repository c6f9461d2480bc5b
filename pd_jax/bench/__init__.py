"""What a config's training takes here, measured: `python -m pd_jax.bench --help`.

`__main__` is the command line, `subject` what is timed of one config, `startup` its
first step in a process of its own, `timing` what all of them time with, `table` the
figures for people.
"""
