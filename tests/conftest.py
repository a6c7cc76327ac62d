"What a shell that runs the tests in the background leaves ignored would be ignored by every command that tests start and interrupt."
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
