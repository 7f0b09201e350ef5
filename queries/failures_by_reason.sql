-- title: Why tensors could not be analyzed
-- about: Failures in the newest revision of every model, the most frequent reason first. Messages that differ only in numbers
--   or quoted names count as one reason, and are shown with # and '...' in their place.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: stage VARCHAR = NULL | this stage only (read or analyse)
-- column: stage | stage of the failure: read or analyse
-- column: error | type of the error
-- column: reason | message without numbers and quoted names
-- column: failures | number of failures
-- column: models | number of models with this failure
-- column: example_model | first of these models
-- column: example_tensor | first tensor of that model; NULL if the checkpoint itself could not be opened
-- column: example_message | message of that failure
-- show: stage, error, reason, failures, models, example_model
-- total: failures
with failed as (
    select
        *,
        regexp_replace(
            regexp_replace(message, $re$'[^']*'|"[^"]*"$re$, '''...''', 'g'), '[0-9]+([.][0-9]+)?', '#', 'g'
        ) as reason
    from failures
    semi join chosen_scans($model, $revision) using (scan_id)
    where $stage is null or stage = $stage
)

select
    stage,
    error,
    reason,
    count(*)::integer as failures,
    count(distinct model)::integer as models,
    first(model order by model, tensor) as example_model,
    first(tensor order by model, tensor) as example_tensor,
    first(message order by model, tensor) as example_message
from failed
group by stage, error, reason
order by failures desc, models desc, stage, error, reason;
