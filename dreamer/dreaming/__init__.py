"""Shared code of behaviors: rollouts of a policy in a dream, and the losses of actor and critic."""
