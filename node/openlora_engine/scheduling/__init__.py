"""What runs in the next step, and on which blocks and slots. Policy only: no torch, no clock, no I/O."""
