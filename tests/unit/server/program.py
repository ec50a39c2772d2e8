"""`leandiffusion` in a process of its own, with a profile that nobody measured; arguments as on the command line."""

from __future__ import annotations

from tests.unit.plan.profiles import a_profile

from leandiffusion.cli.app import main
from leandiffusion.plan import floor, profile

profile.profile_of = lambda *args, **options: a_profile()  # type: ignore[assignment]
floor.floor_here = lambda profile, networks, has_computed: profile.floor  # type: ignore[assignment]
main()
