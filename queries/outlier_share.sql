-- title: Share of the singular values outside the Marchenko-Pastur bulk, by role
-- about: Percentage of all min(rows, cols) singular values that lie below (left) and above (right) the bulk, over all matrices
--   of one role and shape. Random matrices have none except a few values next to the edges. In square matrices no value
--   lies below the bulk, which begins at zero.
-- param: model VARCHAR = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: matrices | number of matrices
-- column: left_percent | singular values below the bulk, percent
-- column: right_percent | singular values above the bulk, percent
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
where ($role is null or role = $role) and (head is not null) = $heads and role not in ('qk', 'ov')
group by model, role, rows, cols
order by model, role_order(role), role, rows, cols;
