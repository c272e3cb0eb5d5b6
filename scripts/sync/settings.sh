#!/bin/bash
# The settings of a checkout, from its own git config.

declare -A config setting setting_file # see gitops_sync.sh

# Read the configuration with one command, and check the settings. Only scopes that belong to the checkout count
# (local and worktree, with the files that they include), not the user's or the system's configuration.
#
# The daemon reads the settings with the same command, so that both always agree:
#     GIT_DIR=<git directory> git config --show-scope --show-origin --null --list
# GIT_DIR must be set: in another user's checkout, git otherwise drops the local scope without an error.
# Needs: GIT_DIR. Sets: config, setting, setting_file, paths. Returns 1 if git cannot read the configuration.
read_settings() {
    local fields scope key value i
    mapfile -d '' -t fields < <(exec_git config --show-scope --show-origin --null --list 2>/dev/null)
    # bash may lose the status of a process substitution. The options of our own command line (GIT) come last, so they
    # show that git has read every file.
    ((${#fields[@]} > 2)) && [[ ${fields[-3]} == command ]] || return 1
    paths=()
    for ((i = 0; i + 2 < ${#fields[@]}; i += 3)); do # scope, origin, key and value; a key without "=" means true
        scope=${fields[i]} key=${fields[i + 2]%%$'\n'*} value=true
        if [[ ${fields[i + 2]} == *$'\n'* ]]; then value=${fields[i + 2]#*$'\n'}; fi
        config[$key]=$value
        [[ $key == gitops.* && ($scope == local || $scope == worktree) ]] || continue
        if [[ $key == gitops.paths ]]; then paths+=("$value"); fi
        setting[${key#gitops.}]=$value
        setting_file[${key#gitops.}]=${fields[i + 1]#file:}
    done
    check_settings
}

# Sets: setting (booleans as true or false). Ends with `usage` if a value is not valid.
check_settings() {
    local key
    for key in submodules paused verify; do
        if [[ $key == paused && ${setting[paused]} =~ ^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$ ]]; then continue; fi
        case ${setting[$key],,} in
            true | yes | on | 1) setting[$key]=true ;;
            false | no | off | 0 | '') setting[$key]=false ;;
            *) reject_setting "$key" 'true or false' ;;
        esac
    done
    [[ ${setting[diverged]} == @(refuse|reset) ]] || reject_setting diverged 'refuse or reset'
    [[ ${setting[dirty]} == @(refuse|stash) ]] || reject_setting dirty 'refuse or stash'
    [[ ${setting[timeout]} =~ ^[1-9][0-9]{0,5}$ ]] || reject_setting timeout 'a number of seconds'
    [[ ${setting[healthtimeout]} =~ ^(0|[1-9][0-9]{0,5})$ ]] || reject_setting healthTimeout 'a number of seconds'
    for key in pin pinTip; do
        [[ ! ${setting[${key,,}]} ]] || is_object_id "${setting[${key,,}]}" || reject_setting "$key" 'a full commit id'
    done
    [[ ${setting[approved]} == @(|hold) ]] || is_object_id "${setting[approved]}" ||
        reject_setting approved 'a commit id or hold'
    # Not a regular expression: bash needs milliseconds to compile one with 200 repetitions.
    if [[ ${setting[tag]} == *[[:cntrl:]\ ~^:\\]* ]] || ((${#setting[tag]} > 200)); then
        reject_setting tag 'a pattern of tags, such as v*'
    fi
    [[ ! ${setting[branch]} ]] || is_branch "${setting[branch]}" || reject_setting branch 'the name of a branch'
}

# Each value of gitops.paths is one pattern. One that git does not accept must not mean "deploy everything".
# Needs: paths, GIT_DIR.
check_paths() {
    local pattern
    for pattern in "${paths[@]}"; do
        # An index that does not exist is empty, so this only parses the pattern.
        GIT_INDEX_FILE=$GIT_DIR/gitops-no-index git ls-files -- "$pattern" &>/dev/null && [[ $pattern ]] && continue
        setting[paths]=$pattern
        reject_setting paths 'patterns that git accepts (see gitglossary, pathspec)'
    done
}

reject_setting() {
    finish usage "gitops.$1 must be $2, not '${setting[${1,,}]}'" "$(unset_fix "$1")"
}

# End a run of a paused checkout. gitops.paused is true, false or the time at which the pause ends, in UTC; a pause that
# has ended is removed. Needs: setting, dry_run.
end_if_paused() {
    local until=${setting[paused]}
    [[ $until != false ]] || return 0
    if [[ $until != true && ! $until > $(TZ=UTC0 printf '%(%Y-%m-%dT%H:%M:%SZ)T' -1) ]]; then
        [[ $dry_run ]] || remove_settings paused pausedBy
        return
    fi
    if [[ $until == true ]]; then until=''; fi
    finish paused "gitops.paused is set$(describe_hold "${setting[pausedby]}")${until:+, until $until}, so nothing was done" \
        "$(hook_fix resume || unset_fix paused)"
}

# describe_hold DESCRIPTION: print who decided it, when and why. DESCRIPTION is "USER TIME REASON", or empty.
describe_hold() {
    local user since reason
    read -r user since reason <<<"$1"
    printf '%s' "${user:+ by $user}${since:+ since $since}${reason:+ ($reason)}"
}

# remove_settings NAME...: remove settings from the checkout's own configuration, if they are there.
remove_settings() {
    local key
    for key; do git config --local --unset-all "gitops.$key"; done
}

# Replace the target by the commit at which an operator holds the checkout (gitops.pin), else by the one that a roll-out
# has approved (gitops.approved). `hold` permits no move and no deploy.
# Needs: setting, branch, target. Sets: target, previous_tip, held.
hold_target() {
    local commit
    release_pin
    commit=${setting[pin]:-${setting[approved]}}
    [[ $commit && $commit != "$target" ]] || return 0
    [[ $commit != hold ]] ||
        finish held "a roll-out holds the checkout; $branch is at ${target:0:10} at the remote"
    if [[ ${setting[pin]} ]]; then
        is_in_upstream "$commit" ||
            finish usage "gitops.pin is ${commit:0:10}, which is not in $branch at the remote; nothing was moved" "$(unpin_fix)"
        held="and gitops.pin is set$(describe_hold "${setting[pinnedby]}")"
    else
        is_in_upstream "$commit" ||
            finish early "the approved commit ${commit:0:10} is not in $branch at the remote; tried again later"
        held='which no roll-out has approved here'
    fi
    previous_tip=$target target=$commit # the remote has what lies between, so it is no person's work
}

# Return true if the tracked branch, or a tag that was followed here, has the commit.
is_in_upstream() {
    git merge-base --is-ancestor "$1" "$target" 2>/dev/null ||
        [[ $tag && $(git for-each-ref --count=1 --contains "$1" refs/gitops/tags 2>/dev/null) ]]
}

# Remove a pin that ends with the next push: the remote's commit is no longer the one that gitops.pinTip names. In a
# roll-out, the daemon removes it when it approves a newer commit. An earlier end would lead back to the approved one.
# Needs: setting, target, dry_run. Sets: setting, notes.
release_pin() {
    [[ ${setting[pin]} && ${setting[pintip]} && ${setting[pintip]} != "$target" && ! ${setting[approved]} ]] || return 0
    notes+="; the pin at ${setting[pin]:0:10} has ended, because the remote has a new commit"
    setting[pin]=''
    [[ $dry_run ]] || remove_settings pin pinTip pinnedBy
}

unpin_fix() { hook_fix deploy || unset_fix pin; }
