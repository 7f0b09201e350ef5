-- title: Overlap with the activations below, inside and above the bulk
-- about: Mean O_k = max_j |v_k . f_j| over the singular vectors of each region, with the range of random vectors. If outliers
--   carry information about the input, their overlap lies above the band, and the overlap of the bulk lies inside it.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run instead of the newest run of each matrix
-- param: role VARCHAR = NULL | this role only
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: model | name of the model
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: region | below, bulk (inside), above, or null (numerically zero)
-- column: vectors | number of singular vectors in the average
-- column: runs | number of runs (texts, numbers of tokens) in the average
-- column: overlap | mean O_k
-- column: above | share of vectors above random_high; 0.00135 for random vectors
-- column: peak | mean largest |entry|
-- column: random_low | 0.135 % quantile of O_k for random vectors
-- column: random_middle | median of O_k for random vectors
-- column: random_high | 99.865 % quantile of O_k for random vectors
-- show: model, role, shape = rows x cols, region, vectors, overlap, above, band = random_low .. random_high
select
    model,
    role,
    rows,
    cols,
    case region when 'left' then 'below' when 'right' then 'above' else region end as region,
    count(*)::integer as vectors,
    count(distinct run_id)::integer as runs,
    avg(overlap) as overlap,
    avg((overlap > random_overlap(cols, 0.99865))::integer) as above,
    avg(peak) as peak,
    random_overlap(cols, 0.00135) as random_low,
    random_overlap(cols, 0.5) as random_middle,
    random_overlap(cols, 0.99865) as random_high
from chosen_overlaps($model, $run, $role, $centred) as found
group by model, role, rows, cols, found.region
order by model, role_order(role), role, rows, cols, list_position(['left', 'bulk', 'right', 'null'], found.region);
