#!/bin/bash
# Releases: a checkout with gitops.tag follows the highest version tag that matches, in git's order of versions.
#
# refs/gitops/tags/<tag>   the commit of each tag that was followed here
# refs/gitops/tag          a symbolic ref to the one that the remote had last, for the daemon

declare -A release config setting # see gitops_sync.sh

# Find the highest matching tag at the remote, and fetch its commit if it is new. The local branch stays the same one:
# it is moved from tag to tag. Never go to a lower version than the one that is checked out and that matches.
# Needs: branch, head_branch, release, releases, head. Sets: tag, target, previous_tip, held, the refs.
locate_tag() {
    local current='' known # not `name`, which `finish` needs
    branch=${branch:-$head_branch}
    [[ $branch ]] || finish missing "the checkout is on no branch, and $origin has no default branch; set gitops.branch"
    for known in "${releases[@]}"; do
        if [[ ${release[$known]} == "$head" ]] && is_release "$known"; then current=$known previous_tip=$head; fi
    done
    ask_for_tags || end_unreachable "$remote_error"
    [[ $tag ]] || finish missing "no tag at $origin matches gitops.tag, '${setting[tag]}'; nothing was changed" "$(unset_fix tag)"
    if [[ ${release[$tag]:-} != "$target" ]]; then
        fetch_tag
    elif ! is_at_target; then
        read_refs # a person may have committed while the remote answered
    fi
    [[ $dry_run || $followed == "$tag" ]] || git symbolic-ref "$state_refs/tag" "refs/gitops/tags/$tag"
    if is_lower_than "$current"; then
        held="whose highest tag, $tag, is lower"
        previous_tip=$target tag=$current target=$head
    fi
}

# Ask the remote for its tags, in one connection.
# Needs: announced_tag, announced_commit. Sets: tag (empty if none matches), target, is_announced_shown.
ask_for_tags() {
    local value ref candidate
    local -A commits=()
    tag='' target='' is_announced_shown=''
    remote_git ls-remote --tags --sort=-version:refname -- origin || return
    read_redirect
    while IFS=$'\t' read -r value ref; do
        candidate=${ref#refs/tags/}
        if [[ ${candidate%'^{}'} == "$announced_tag" && $value == "$announced_commit" ]]; then is_announced_shown=yes; fi
        if [[ $candidate == *'^{}' ]]; then # the commit of an annotated tag
            commits[${candidate%'^{}'}]=$value
        elif is_release "$candidate"; then
            tag=${tag:-$candidate}
            commits[$candidate]=${commits[$candidate]:-$value}
        fi
    done <<<"$answer"
    if [[ $tag ]]; then target=${commits[$tag]}; fi
}

# Return true if gitops.tag matches the tag. A tag with a hyphen is a pre-release, unless the pattern has a hyphen
# outside of brackets.
is_release() {
    local plain=${setting[tag]//\[*([!\]])\]/}
    # shellcheck disable=SC2053 # a pattern
    [[ $1 == ${setting[tag]} && ($1 != *-* || $plain == *-*) ]]
}

# Needs: tag, target. Sets: the refs.
fetch_tag() {
    remote_git fetch --quiet --no-auto-maintenance --no-write-fetch-head --no-prune --no-recurse-submodules --no-tags \
        --refmap= origin "refs/tags/$tag" || end_unreachable "$remote_error"
    git cat-file -e "$target^{commit}" 2>/dev/null ||
        finish unreachable "the tag $tag was moved at $origin meanwhile, or is not a commit; tried again later"
    [[ ! $dry_run ]] || return 0
    git update-ref "refs/gitops/tags/$tag" "$target" || finish failed "refs/gitops/tags/$tag cannot be written"
    read_refs
}

# is_lower_than TAG: return true if the remote's highest tag comes before TAG. Needs: tag, releases.
is_lower_than() {
    local candidate
    for candidate in "${releases[@]}"; do
        if [[ $candidate == "$tag" ]]; then [[ $1 && $1 != "$tag" ]] && return; return 1; fi
        if [[ $candidate == "$1" ]]; then return 1; fi
    done
    return 1
}
