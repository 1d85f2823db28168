"""This machine and this process: hardware, driver, signals, heartbeat, console, files. No torch."""
