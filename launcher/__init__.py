"""Where and how jobs run: the worker that every rank starts, and the driver on the command line."""
