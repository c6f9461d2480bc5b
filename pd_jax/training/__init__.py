"""One stage of training: its plan, state, optimizer, compiled step, loop, callbacks."""
