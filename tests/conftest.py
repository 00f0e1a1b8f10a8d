"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Let programs that the tests start be interrupted: what a shell runs in the background would not be."""
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
