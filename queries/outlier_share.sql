-- title: Share of the singular values outside the Marchenko-Pastur bulk, by role
-- about: Per cent of all min(rows, cols) singular values that lie below (left) and above (right) the bulk, over all
--   matrices of one role and shape. Random matrices have none, up to a few values next to the edges. Square matrices
--   can have none on the left: their bulk begins at zero.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: model | the model's name
-- column: role | what the matrix does in its block
-- column: rows | output features
-- column: cols | input features
-- column: matrices | matrices counted
-- column: left_percent | singular values below the bulk, per cent
-- column: right_percent | singular values above the bulk, per cent
select
    model,
    role,
    rows,
    cols,
    count(*)::integer as matrices,
    100 * sum(outliers_left) / sum(least(rows, cols)) as left_percent,
    100 * sum(outliers_right) / sum(least(rows, cols)) as right_percent
from matrices
semi join chosen_scans($model, $revision) using (scan_id)
where ($role is null or role = $role) and (head is not null) = $heads
group by model, role, rows, cols
order by model, role_order(role), role, rows, cols;
