"""The hub: registry, releases, rollouts, enrolment, evidence and the teacher's endpoint, in one asynchronous process."""
