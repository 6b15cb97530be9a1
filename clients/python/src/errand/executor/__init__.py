"""The processes that run job functions.

A runner is one supervisor, which talks to the service, and some executors, which it starts with
`python -m errand.executor`. They share nothing but a socket, so a function that keeps the interpreter for itself for
minutes, or brings its process down, costs no heartbeat. An executor does not know the service: it is told to start
and to stop executions, and tells how they end. It ends as soon as its supervisor is gone.
"""
