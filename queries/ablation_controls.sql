-- title: Damage of each set of singular values beside that of its controls
-- about: Is it their size, their energy, their direction or only the row and column scale that makes these singular values matter? Damage
--   is in nats per token (perplexity: increase of its logarithm; kl) or in lost accuracy. Controls: random, as many other values are
--   removed; energy, other values with the same sum of squares are removed; directions, the values stay but get random vectors that are
--   orthogonal to the rest; scale, a random matrix with the row and column variances of the removed part takes its place. difference is the
--   damage of the set minus the mean damage of the control. Its error combines that over windows or examples, which are the same for all
--   points and therefore paired, and that over the draws of the control; the interval is 95 % of Student's t with the degrees of freedom of
--   Welch and Satterthwaite. Intervals are not corrected for the number of rows. Points of version 0.1 have no values by
--   window and are left out. The points come from `rmtscan ablate --controls energy,directions,scale`.
-- param: model MODEL = NULL | this model only
-- param: run VARCHAR = NULL | this run only (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | this metric only: perplexity, accuracy or kl
-- param: control VARCHAR = NULL | this control only: random, energy, directions or scale
-- column: run_id | one model, metric, text and precision
-- column: model | name of the model
-- column: metric | perplexity, accuracy or kl
-- column: roles | roles of the changed matrices
-- column: layers | blocks of the changed matrices
-- column: set | set of singular values
-- column: control | random, energy, directions or scale
-- column: draws | number of draws of the control
-- column: energy | share of the sum of the squared singular values that the set has
-- column: control_energy | the same of the control, mean over the draws
-- column: damage | damage without the set
-- column: damage_low | lower end of its 95 % interval over windows or examples
-- column: damage_high | upper end
-- column: control_damage | mean damage of the control
-- column: difference | damage - control_damage
-- column: stderr | standard error of the difference; NULL with a single draw or a single window
-- column: low | lower end of its 95 % interval
-- column: high | upper end
-- column: exceeded | number of draws that do less damage than the set
-- column: differs | more or less: the interval of the difference does not contain 0; NULL if it does
-- show: model, metric, roles, set, control, damage, control_damage, difference, interval = low .. high, differs
with points as (from damage($model, $run, $metric)),

sets as (from points where beside is null),

draws as (
    -- A random set belongs to every set of its size, other controls to the set that they were drawn for.
    select
        sets.run_id,
        sets.roles,
        sets.layers,
        sets.set,
        split_part(controls.set, ':', 1) as control,
        controls.damage,
        controls.energy,
        controls.excess
    from sets
    join points as controls
        on controls.run_id = sets.run_id
        and controls.roles = sets.roles
        and controls.layers = sets.layers
        and case
            when starts_with(controls.set, 'random:') then controls.removed = sets.removed
            else controls.beside = sets.set
        end
    where controls.beside is not null
),

averaged as (
    select
        run_id,
        roles,
        layers,
        set,
        control,
        count(*) as draws,
        avg(energy) as energy,
        avg(damage) as damage,
        var_samp(damage) / count(*) as variance,
        list(damage) as damages,
        list(excess) as excesses
    from draws
    group by all
),

compared as (
    select
        sets.run_id,
        sets.model,
        sets.metric,
        sets.roles,
        sets.layers,
        sets.set,
        averaged.control,
        averaged.draws::integer as draws,
        sets.energy,
        averaged.energy as control_energy,
        sets.damage,
        len(sets.excess) - 1 as windows_df,
        t_quantile(windows_df) * sqrt(window_variance(sets.excess, sets.weights)) as half,
        averaged.damage as control_damage,
        sets.damage - averaged.damage as difference,
        averaged.variance as draws_variance,
        -- by window, the excess of the set over the mean of the draws
        window_variance(
            list_transform(
                range(1, len(sets.excess) + 1),
                lambda place: sets.excess[place] - list_avg(list_transform(averaged.excesses, lambda one: one[place]))
            ),
            sets.weights
        ) as windows_variance,
        len(list_filter(averaged.damages, lambda one: one < sets.damage))::integer as exceeded
    from sets
    join averaged using (run_id, roles, layers, set)
),

tested as (
    select
        *,
        sqrt(windows_variance + draws_variance) as stderr,
        stderr * t_quantile(welch(windows_variance, windows_df, draws_variance, draws - 1)) as width
    from compared
)

select
    run_id,
    model,
    metric,
    roles,
    layers,
    set,
    control,
    draws,
    energy,
    control_energy,
    damage,
    damage - half as damage_low,
    damage + half as damage_high,
    control_damage,
    difference,
    stderr,
    difference - width as low,
    difference + width as high,
    exceeded,
    case when difference > width then 'more' when difference < -width then 'less' end as differs
from tested
where $control is null or control = $control
order by
    model,
    metric,
    run_id,
    role_order(split_part(roles, ',', 1)),
    roles,
    try_cast(regexp_extract(layers, '\d+') as integer),
    layers,
    split_part(set, ':', 1),
    try_cast(split_part(set, ':', 2) as integer),
    list_position(['left', 'bulk', 'right'], split_part(set, ':', 2)),
    set,
    list_position(['random', 'energy', 'directions', 'scale'], control);
