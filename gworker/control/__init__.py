"""The controller's side: one actor per app that keeps its pools. Decisions are pure; the actor carries them out."""
