-- The only folders that SQL can read from now on.
set allowed_directories = $folders;
