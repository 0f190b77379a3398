"""Discovery: which composition of operations suits a data set, found by a search that never looks at its test data.

settings, axes, space   what may be tried, from signatures and from what a user wrote
protocols               which data may be looked at
plan                    a search before it starts, everything checked
study, rungs            what was tried and what comes next
trial, worker, driver   the work
findings, report        what came out
knowledge               what earlier searches found
command                 the command line
"""

from holdfast.discovery.command import Outcome, search, sweep

__all__ = ["Outcome", "search", "sweep"]
