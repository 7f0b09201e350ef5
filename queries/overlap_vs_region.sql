-- title: Overlap with the activations left of, inside and right of the random bulk
-- about: Mean O_k = max_j |v_k . f_j| over the singular vectors of each region, against what random vectors have. Where
--   outliers carry information about the input, their overlap lies above the band and that of the bulk inside it.
-- param: model VARCHAR = NULL | only this model
-- param: run VARCHAR = NULL | this run instead of each matrix's newest
-- param: role VARCHAR = NULL | only this role
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | the model's name
-- column: role | what the matrix does in its block
-- column: rows | output features
-- column: cols | input features
-- column: region | left, bulk or right of the Marchenko-Pastur law; null: numerically zero
-- column: vectors | singular vectors averaged over
-- column: runs | runs (texts, numbers of tokens) that these come from
-- column: overlap | mean O_k
-- column: above | share of them above random_high; random vectors: 0.00135
-- column: peak | mean largest |entry|
-- column: random_low | 0.135 % of O_k for random vectors
-- column: random_middle | its median
-- column: random_high | 99.865 %
select
    model,
    role,
    rows,
    cols,
    region,
    count(*)::integer as vectors,
    count(distinct run_id)::integer as runs,
    avg(overlap) as overlap,
    avg((overlap > random_overlap(cols, 0.99865))::integer) as above,
    avg(peak) as peak,
    random_overlap(cols, 0.00135) as random_low,
    random_overlap(cols, 0.5) as random_middle,
    random_overlap(cols, 0.99865) as random_high
from chosen_overlaps($model, $run, $role, $centred)
group by model, role, rows, cols, region
order by model, role_order(role), role, rows, cols, list_position(['left', 'bulk', 'right', 'null'], region);
