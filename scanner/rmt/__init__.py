"""Pure numerics: functions of arrays, without input or output, without Ray, and independent of the rest of the project."""
