-- From here on, SQL can read these folders only.
set allowed_directories = $folders;
