-- Whether a model of exactly this name was scanned.
select count(*) > 0 as scanned from scans where model = $model;
