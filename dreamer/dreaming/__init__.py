"""Shared code of behaviors: rolling a policy out in a dream, and the losses of actor and critic."""
