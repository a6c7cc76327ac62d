"""A shell that runs the tests in the background ignores Ctrl-C; every command that tests start and interrupt would
ignore it too."""
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
