-- title: Overlap with the activations over the checkpoints of a training
-- about: Mean O_k of the large, middle and small tenths of the singular values, for several models of one store: the checkpoints of a
--   training, each with a run of activations on the same text. They are in the order in which models names them; without it, in that
--   of the last number in their names, which is their step. Random vectors lie in the band from random_low to random_high.
-- param: models VARCHAR = NULL | names of the checkpoints with commas between them, in their order; without it all models with runs
-- param: role VARCHAR = NULL | this role only
-- param: layer INTEGER = NULL | this block only
-- param: centred BOOLEAN = TRUE | the covariance of the activations; if false, their second moments
-- column: place | place of the checkpoint in the order, from 1
-- column: model | name of the checkpoint
-- column: step | last number in its name; NULL if it has none
-- column: role | role of the matrix in its block
-- column: rows | output features
-- column: cols | input features
-- column: part | small end (decile 1), middle (deciles 2 to 9) or large end (decile 10) of the spectrum
-- column: vectors | number of singular vectors
-- column: texts | number of different texts that the runs read; more than 1 is no comparison of checkpoints
-- column: overlap | mean O_k
-- column: spread | standard deviation of the mean O_k of single matrices; NULL for a single one
-- column: above | share of vectors above random_high
-- column: signs_p | mean p-value of O_k for random signs of the entries of v_k
-- column: random_low | 0.135 % quantile of O_k for random vectors
-- column: random_middle | median of O_k for random vectors
-- column: random_high | 99.865 % quantile of O_k for random vectors
-- show: model, role, shape = rows x cols, place, step, part, overlap, above, signs_p, band = random_low .. random_high
with named as (
    select
        model,
        try_cast(nullif(regexp_extract(model, '([0-9]+)[^0-9]*$', 1), '') as bigint) as step,
        list_position(list_transform(string_split($models, ','), lambda one: trim(one)), model) as given
    from (select distinct model from "overlaps")
),

placed as (
    select
        model,
        step,
        row_number() over (order by given nulls last, step nulls first, model)::integer as place
    from named
    where $models is null or given is not null
),

texts as (
    select count(distinct dataset)::integer as texts
    from experiments
    semi join placed using (model)
    where kind = 'activations'
),

of_matrices as (
    select
        place,
        model,
        step,
        role,
        rows,
        cols,
        case (10 * k) // least(rows, cols) when 9 then 'small end' when 0 then 'large end' else 'middle' end as part,
        tensor,
        count(*) as vectors,
        any_value(texts) as texts,
        sum(overlap) as overlap,
        sum((overlap > random_overlap(cols, 0.99865))::integer) as above,
        sum(signs_p) as signs_p,
        count(signs_p) as with_signs
    from chosen_overlaps(null, null, $role, $centred)
    inner join placed using (model)
    cross join texts
    where region != 'null' and ($layer is null or layer = $layer)
    group by place, model, step, role, rows, cols, part, tensor
)

select
    place,
    model,
    step,
    role,
    rows,
    cols,
    part,
    sum(vectors)::integer as vectors,
    any_value(texts) as texts,
    sum(overlap) / sum(vectors) as overlap,
    stddev_samp(overlap / vectors) as spread,
    sum(above) / sum(vectors) as above,
    sum(signs_p) / nullif(sum(with_signs), 0) as signs_p,
    random_overlap(cols, 0.00135) as random_low,
    random_overlap(cols, 0.5) as random_middle,
    random_overlap(cols, 0.99865) as random_high
from of_matrices
group by place, model, step, role, rows, cols, part
order by role_order(role), role, rows, cols, part, place;
