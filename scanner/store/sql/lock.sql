-- Nothing outside the allowed folders can be read, no extension can be loaded, and these settings cannot be changed back.
set enable_external_access = false;
set lock_configuration = true;
