-- Nothing outside the allowed folders can be read, no extension loaded, and none of this undone.
set enable_external_access = false;
set lock_configuration = true;
