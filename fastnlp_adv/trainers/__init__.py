"""The methods in the trainers of other libraries; import the module of yours."""

__all__: list[str] = []
